//! Building a domain.
