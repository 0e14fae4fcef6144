"""The selectors of SubFit, one file each."""
