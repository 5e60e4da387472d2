"""A run as people read it: tables (Markdown), pictures (SVG), and one HTML page that holds both."""
