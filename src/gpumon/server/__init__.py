"""The server: receives samples over HTTP, keeps them in daily CSV files, answers questions about them.

serve, app, api     HTTP; settings (every key), metrics and exposition (Prometheus)
engine              all that is not HTTP, opened, kept up and closed in order
decode, accept      from the bytes of a request to rows of the CSVs; labels (chosen labels, when they are new)
ingest              the queue in front of the disk and its one writer; journal (what is committed)
csvlog              the daily CSV files, the truth; parts, healing, disk, days (names of files), retention, tables
                    (the three kinds)
index               all that is made of the CSVs: store (the database; alarms end what takes too long), catchup
                    (pace, leftout), sources, arrivals and loading (how rows get there), rolling, touched (rollups
                    of accounts)
sealer, sealing     days as Parquet: shelf, adoption; manifest, sealedfolders, sealedtables, sealedfiles (what the
                    disk, the store and retention know of them), scrubbing (whether they are still whole)
reader              the old program's questions; queries, figures
accounts            whose the GPUs' time, energy and money were, and who is on them now; desk (where it asks)
exporting           rows out of it; importing (CSVs of elsewhere into it), dayfiles (the CSVs themselves)
"""
