"""The plug-ins of SubFit: one file each, found by its name."""
