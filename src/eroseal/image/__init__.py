"""EROFS images: layout, writer, reader, structure check and unpacking."""
