"""Files or hub → rows → findings → splits → token ids."""
