"""How samples get to the server, once.

batcher        samples become batches with an id for ever
spool          batches wait: in memory, then on disk; the oldest dropped and counted
spooldisk      the spool's part on disk
batchfiles     a batch as a file
delivery       the loop: the head of the spool, again and again until the server has it
bearer         the token that is shown
connection     the way to the server: address and certificates
sender         the door to the server: one POST per batch
serverprobe    what `doctor` asks the server
"""
