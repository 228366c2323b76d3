"""AstroMAE, import of foreign weights, export, and the runtime that workers use."""
