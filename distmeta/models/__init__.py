"""Networks: plain ``nn.Module`` classes, independent of meta-learning."""
