"""Which n and m pay, from a cost model fitted to a few measured steps."""
