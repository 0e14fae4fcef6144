"""The bypasses of SubFit, one file each."""
