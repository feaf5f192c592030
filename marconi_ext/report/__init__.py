"""One report of one or more results folders: HTML, pictures, Markdown."""
