"""Systems that people use models with, each by one small module under one contract. See docs/deploy.md."""
