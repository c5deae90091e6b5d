"""From scores to rows: intervals, comparisons, tables and plots."""
