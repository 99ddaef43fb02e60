"""Who may enter: users, roles, certificate authorities, join tokens, certificates, and the API over them."""
