//! The examples that `--help` and the man pages show, for each command.

use clap::Command;

/// Each command by its words, with its examples: a command line and, after two or more spaces, what it does.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "meshctl demo                             a small mesh on this machine, to see it work",
            "meshctl ca init                          make the mesh's certificate authority",
            "meshctl invite ct112                     on the CA's host: print the command for a host that is to join",
            "sudo meshctl join <token>                on that host: get a certificate, configure and start",
            "meshctl ca issue-node ct111 192.168.10.111",
            "meshctl ca renew --all                   renew what expires soon; daily, from a timer",
            "meshctl status                           is this node healthy? (exit code 1 if not)",
            "meshctl nodes --agent grok               the nodes that host the agent grok",
            "meshctl nodes forget ct119               remove a node from the registry for good",
            "meshctl ping                             ping every node over mutual TLS",
            "meshctl doctor                           is the mesh healthy? (exit codes of monitoring plugins)",
            "meshctl doctor grok                      check the path to an agent or node, step by step",
            "meshctl top                              requests in flight, by peer and agent",
            "meshctl tap --errors                     requests that fail, as they happen",
            "sudo meshctl drain --wait                send no new tasks here, and wait for those in flight",
            "meshctl dashboard                        watch all of it in a browser",
            "meshctl policy explain opus@ct111 POST /api/message",
            "meshctl upgrade                          replace the running mesh-proxy with the installed one",
        ],
    ),
    (
        "status",
        &[
            "meshctl status              exit code 1 if something is wrong with this node",
            "meshctl status --wide       with process id, agents that are down, end of the first revocation list",
            "meshctl status --watch      again every second",
            "meshctl status --json",
            "sudo meshctl status set updating",
        ],
    ),
    (
        "status set",
        &[
            "sudo meshctl status set updating  no tasks by agent name from now on",
            "sudo meshctl status set online    back again",
        ],
    ),
    (
        "nodes",
        &[
            "meshctl nodes --wide        with capabilities, providers and models",
            "meshctl nodes --agent grok --status online",
            "meshctl nodes --watch --json",
            "sudo meshctl nodes forget ct119",
        ],
    ),
    ("nodes forget", &["sudo meshctl nodes forget ct119  it must be offline"]),
    (
        "agents",
        &[
            "meshctl agents              which agents there are, and on which nodes",
            "meshctl agents --wide       with the nodes' addresses, and provider and model of this node's agents",
            "meshctl agents --watch",
            "meshctl agents --json",
        ],
    ),
    (
        "ping",
        &[
            "meshctl ping                all other nodes, including those registered as offline",
            "meshctl ping ct111 --wide   with its addresses, state and version",
            "meshctl ping ct111 --watch",
        ],
    ),
    (
        "doctor",
        &[
            "meshctl doctor              the mesh; exit code 0: healthy, 1: warning, 2: failure, 3: could not check",
            "meshctl doctor --quiet      print only problems",
            "meshctl doctor ct111        the path from here to a node",
            "meshctl doctor grok         the path to an agent: who hosts it, who gets its tasks, does it answer",
            "meshctl doctor grok@ct111   the path to that agent on that node",
            "meshctl doctor ct111 --json",
        ],
    ),
    (
        "upgrade",
        &[
            "sudo meshctl upgrade        after a newer mesh-proxy was installed",
            "sudo meshctl upgrade --timeout 300",
        ],
    ),
    (
        "watch",
        &[
            "meshctl watch               until Ctrl-C",
            "meshctl watch --json        one document on each line, for programs",
        ],
    ),
    (
        "top",
        &[
            "meshctl top                              this host, updated each second",
            "meshctl top --node ct111                 another node, if its proxy.live.peers names this one",
            "meshctl top --once                       one table, after looking for a second",
            "meshctl top --json                       one object each second",
        ],
    ),
    (
        "tap",
        &[
            "meshctl tap                              every request of this host that ends, from now on",
            "meshctl tap --errors                     only those that failed, with the reason",
            "meshctl tap --refused                    only peers that were refused before they made a request",
            "meshctl tap --node ct111 --direction in  requests to ct111, if its proxy.live.peers names this node",
            "meshctl tap --agent grok --path /api/message --status 5xx",
            "meshctl tap --json --for 30s > half-a-minute.jsonl",
        ],
    ),
    (
        "drain",
        &[
            "sudo meshctl drain                       tell other nodes to send no new tasks here",
            "sudo meshctl drain --wait                and wait until those that they have sent are done",
            "sudo meshctl drain --wait --timeout 2m   for at most two minutes",
        ],
    ),
    ("undrain", &["sudo meshctl undrain                     take tasks again"]),
    (
        "dashboard",
        &[
            "meshctl dashboard                        open it in the browser of this desktop",
            "meshctl dashboard --no-open --listen 8900  print the URL only",
        ],
    ),
    ("config", &["meshctl config schema > mesh.schema.json"]),
    ("config reference", &["meshctl config reference                 every key, as Markdown"]),
    ("config schema", &["meshctl config schema > mesh.schema.json"]),
    (
        "hosts",
        &[
            "meshctl hosts               print the block",
            "sudo meshctl hosts --write  write it to /etc/hosts, in place of an older one",
            "meshctl hosts --write /srv/hosts.mesh",
        ],
    ),
    ("store", &["sudo meshctl store migrate --to etcd  then change registryd.store.kind on each node"]),
    (
        "store migrate",
        &[
            "sudo meshctl store migrate --to etcd  then change registryd.store.kind on each node",
            "sudo meshctl store migrate --to file  and back",
        ],
    ),
    ("policy", &["meshctl policy explain opus@ct111 POST /api/message"]),
    (
        "policy explain",
        &[
            "meshctl policy explain opus@ct111 POST /api/message   a request to this node",
            "meshctl policy explain ct111 GET /v1/models --agent grok",
            "meshctl policy explain ct111 POST /api/message --outbound  a request from this node",
        ],
    ),
    (
        "invite",
        &[
            "sudo meshctl invite ct112 --agents grok,scout         a node, and the agents that it may host",
            "sudo meshctl invite ct112 --san 192.168.10.112 --ttl 2h",
            "sudo meshctl invite --agent opus@ct112                an agent with a certificate of its own",
            "sudo meshctl invite --device phone-1",
        ],
    ),
    (
        "join",
        &[
            "sudo meshctl join <token>                             with the token that meshctl invite printed",
            "sudo meshctl join - --set proxy.backend.address=127.0.0.1:9000  with the token from stdin",
            "meshctl join <token> --out .                          as an agent or a device",
        ],
    ),
    (
        "ca",
        &[
            "sudo meshctl ca init                       root, intermediate and an empty revocation list",
            "sudo meshctl ca issue-node ct110 192.168.10.110 --agents opus",
            "sudo meshctl ca renew --all                what expires within 30 days, and the revocation lists",
            "sudo meshctl ca revoke ct111 --reason key-compromise",
            "sudo meshctl ca list --json",
            "sudo meshctl ca verify                     exit code 1 if something cannot work",
        ],
    ),
    (
        "ca init",
        &[
            "sudo meshctl ca init                       below /rivet-shared/rivet-ca",
            "sudo meshctl ca init --dir /srv/ca --root-dir /root/ca-root",
        ],
    ),
    (
        "ca issue-node",
        &[
            "sudo meshctl ca issue-node ct110 192.168.10.110",
            "sudo meshctl ca issue-node ct110 192.168.10.110 ct110.lan --agents opus,scout --days 30",
        ],
    ),
    ("ca issue-agent", &["sudo meshctl ca issue-agent opus@ct110"]),
    ("ca issue-device", &["sudo meshctl ca issue-device phone-1"]),
    (
        "ca sign",
        &["sudo meshctl ca sign ct112.csr 10.0.0.112 --agents grok  a request that meshctl csr made"],
    ),
    (
        "ca renew",
        &[
            "sudo meshctl ca renew ct110",
            "sudo meshctl ca renew ct110 --agents grok  and change which agents it may host",
            "sudo meshctl ca renew --all --within 50",
        ],
    ),
    (
        "ca revoke",
        &["sudo meshctl ca revoke ct111 --reason key-compromise", "sudo meshctl ca revoke --serial 4f2a"],
    ),
    ("ca refresh-lists", &["sudo meshctl ca refresh-lists"]),
    ("ca renew-intermediate", &["sudo meshctl ca renew-intermediate"]),
    ("ca renew-root", &["sudo meshctl ca renew-root"]),
    ("ca retire", &["sudo meshctl ca retire 'Mesh Root CA 5f0c'"]),
    ("ca list", &["sudo meshctl ca list", "sudo meshctl ca list --all --json"]),
    ("ca verify", &["sudo meshctl ca verify"]),
    ("ca serve", &["sudo -u mesh-ca meshctl ca serve  as mesh-ca.service does"]),
    (
        "csr",
        &[
            "meshctl csr ct112                      writes ct112.key and ct112.csr",
            "meshctl csr opus@ct112 --out /etc/mesh",
        ],
    ),
    (
        "demo",
        &[
            "meshctl demo                           until Ctrl-C",
            "meshctl demo --once                    exit code 0 only if every step worked",
        ],
    ),
    ("completions", &["meshctl completions bash > /usr/local/share/bash-completion/completions/meshctl"]),
    ("man", &["sudo meshctl man /usr/local/share/man"]),
];

/// The command line with its examples.
pub fn with_examples(command: Command) -> Command {
    add(command, "")
}

fn add(command: Command, words: &str) -> Command {
    let examples = EXAMPLES.iter().find(|(of, _)| *of == words);
    let command = match examples {
        Some((_, lines)) => {
            let lines: Vec<String> = lines.iter().map(|line| format!("  {line}")).collect();
            // The command's own notes follow the examples.
            let notes = command.get_after_help().map(|notes| format!("\n\n{notes}")).unwrap_or_default();
            command.after_help(format!("Examples:\n{}{notes}", lines.join("\n")))
        }
        None => command,
    };
    let names: Vec<String> = command.get_subcommands().map(|each| each.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| {
        let words = format!("{words} {name}").trim_start().to_owned();
        command.mut_subcommand(name, |each| add(each, &words))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_line;

    /// The words of an example as a shell would have them, without what does not go to meshctl.
    fn arguments(example: &str) -> Vec<String> {
        let line = example.split("  ").next().unwrap().split(" > ").next().unwrap();
        // Whatever is quoted is one argument.
        let words = line.split('\'').enumerate().flat_map(|(i, part)| match i % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        });
        words.skip_while(|word| word != "meshctl").collect()
    }

    #[test]
    fn every_example_is_a_command_line_of_its_command() {
        for (words, lines) in EXAMPLES {
            for line in *lines {
                let arguments = arguments(line);
                let mut matches = &command_line()
                    .try_get_matches_from(&arguments)
                    .unwrap_or_else(|error| panic!("{line:?}: {arguments:?}: {error}"));
                for word in words.split_whitespace() {
                    let (name, below) = matches.subcommand().expect(line);
                    assert_eq!(name, word, "{line:?}");
                    matches = below;
                }
            }
        }
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &Command, words: &str) {
            for each in command.get_subcommands().filter(|each| !each.is_hide_set()) {
                let words = format!("{words} {}", each.get_name()).trim_start().to_owned();
                assert!(
                    EXAMPLES.iter().any(|(of, _)| *of == words),
                    "there is no example of meshctl {words}"
                );
                check(each, &words);
            }
        }
        check(&command_line(), "");
    }
}
