"""The device in a browser: a static folder in which a plugin runs, and what builds it. Its code is in static/."""
