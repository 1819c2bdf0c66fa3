"""The stages as functions of params and of a layout of folders, one module each."""
