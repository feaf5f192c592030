"""What a release of SGLang changes for the extension, told from sources: nothing of it is imported or installed."""
