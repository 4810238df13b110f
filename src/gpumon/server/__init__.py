"""The server: receives samples over HTTP, keeps them in daily CSV files, answers questions about them."""
