"""Pages that open in any browser without a network: the style that they share, a slide's report, a folder's contact sheet."""
