"""Which server should take a request: by what each can resume, and by its load."""
