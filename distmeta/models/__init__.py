"""Floor 3: plain ``nn.Module`` networks; they know nothing of meta-learning."""
