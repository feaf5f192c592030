"""An SGLang platform that runs the unmodified engine on a CPU; active only by name."""
