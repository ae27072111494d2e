"""Containers' world: registries, image layouts and saved archives, and the form that sealed images take there."""
