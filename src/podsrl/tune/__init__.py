"""Which n, m, learning rate and other settings learn most at equal training time or steps."""
