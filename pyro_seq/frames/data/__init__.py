"""Films from files: arrays, GIFs, folders of pictures, and the demo's moving squares."""
