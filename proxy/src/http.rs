//! HTTP as it passes through: headers, bodies, errors, upgrades, and the settings of HTTP/2.

pub mod body;
pub mod deadline;
pub mod h1;
pub mod h2;
pub mod headers;
pub mod idle;
pub mod incoming;
pub mod interim;
pub mod message;
pub mod pace;
pub mod problem;
pub mod progress;
pub mod redirect;
pub mod replay;
pub mod upgrade;
