//! End-to-end tests through the real binaries, a module for each behaviour.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod access_line;
mod addresses;
mod admin;
mod agent_identity;
mod agents;
mod alerts;
mod bad_certificates;
mod ca_folder;
mod ca_process;
mod ca_requests;
mod certificates;
mod clocks;
mod clones;
mod configuration;
mod configuration_schema;
mod confinement;
mod connections;
mod demo;
mod departures;
mod destinations;
mod discovery;
mod doctor;
mod documents;
mod early_answers;
mod etcd;
mod events;
mod exchanges;
mod failover;
mod first_view;
mod floods;
mod foreign_json;
mod forged_answers;
mod forgetting;
mod forwarding;
mod guards;
mod handshake;
mod harness;
mod hosting;
mod interim;
mod joining;
mod joins;
mod live;
mod log;
mod membership;
mod meshctl;
mod names;
mod one_file_many_writers;
mod one_reading;
mod operating;
mod outbound_errors;
mod own_address;
mod own_ttl;
mod partition;
mod pass_through;
mod peer_api;
mod policy;
mod properties;
mod queries;
mod redirects;
mod refusals;
mod renewal;
mod resilience;
mod restarts;
mod retries;
mod revocation_travels;
mod rivetos_ca;
mod roster_feed;
mod socket_limits;
mod spiffe;
mod stopping;
mod storage;
mod streaming;
mod supervisor;
mod threads;
mod traces;
mod trust_files;
mod trust_while_connected;
mod tunnels;
mod unix_sockets;
mod upgrading;
mod uploads;
mod waiting_connections;

use std::io::Write;
use std::process::{Command, Stdio};

use mesh_tests::process::text;

/// Runs a command with this standard input; gives what it wrote.
fn piped(command: &mut Command, input: &[u8]) -> String {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that ends early does not read everything.
    let _ = stdin.write_all(input);
    // Kept open: some programs end with their input.
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    text(&output.stdout) + &text(&output.stderr)
}
