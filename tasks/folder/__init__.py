"""Work on whole folders: remove leftovers, watch an inbox, examine a site, make the demo slide."""
