"""The template language, its renderer, and the building of instruction records."""
