"""The scorers of SubFit, one file each."""
