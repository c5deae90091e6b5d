"""Which visual tokens survived each stage: several bundles or budgets side by side, as a picture or a page."""
