"""The file tree model and the sources it comes from."""
