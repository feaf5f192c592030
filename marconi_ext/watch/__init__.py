"""A running server as an operator sees it: polls of /server_info, rates between them, the dump of its tree."""
