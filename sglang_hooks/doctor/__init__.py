"""What `marconi doctor` asks in a process of its own, where SGLang is imported."""
