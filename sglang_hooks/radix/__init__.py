"""The radix cache: SGLang's, with exact checkpoints and the policy's eviction."""
