//! `/api/admin/apps`: the admin API.
