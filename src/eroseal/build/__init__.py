"""Building: a source becomes a sealed, stored image."""
