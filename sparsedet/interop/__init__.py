"""Where other frameworks are met: one module per framework, imported by no other module here."""
