"""Films to be looked at: GIFs, contact sheets, TensorBoard, the report."""
