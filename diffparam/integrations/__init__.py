"""The edge to other libraries; none of them is needed to import this package."""
