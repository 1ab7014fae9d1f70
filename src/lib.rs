//! Herald: a self-hosted realtime broker. stub
pub mod app;
pub mod broker;
pub mod cli;
pub mod form;
pub mod http;
pub mod phoenix;
pub mod server;
pub mod session;
pub mod settings;
