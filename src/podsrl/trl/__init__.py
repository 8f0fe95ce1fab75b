"""PODS in TRL. With runs/ the only room that imports trl."""
