"""The method as functions on tensors; imports torch and nothing else of the framework's."""
