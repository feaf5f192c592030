"""Everything that touches SGLang: plugin, flags, cache hooks, CPU platform."""
