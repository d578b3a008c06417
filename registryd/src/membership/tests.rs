use mesh_shared::event::Kind;
use mesh_shared::registry::{END_OF_TIME_MS, Registry};
use serde_json::json;

use super::*;

/// A mesh seen from ct110, with a clock that the test moves.
struct Reader {
    mesh: Membership,
    now: Now,
}

impl Reader {
    fn new() -> Self {
        let now = Now { instant: Instant::now(), epoch_ms: 1_000_000 };
        let local: NodeName = "ct110".parse().unwrap();
        let mut own = Node { name: "ct110".into(), host: "10.0.0.110".into(), port: 3000, ..Node::default() };
        own.last_seen = now.epoch_ms;
        Self { mesh: Membership::new(local, own, Duration::from_secs(90), now), now }
    }

    fn after(&mut self, seconds: u64) -> &mut Self {
        self.now.instant += Duration::from_secs(seconds);
        self.now.epoch_ms += seconds * 1000;
        self
    }

    /// Reads a file with these nodes, having looked at it all along.
    fn reads(&mut self, nodes: &[Node]) -> Vec<(Kind, String)> {
        self.mesh.watch.looked_at = self.now.instant;
        self.mesh.watch.next_look = self.now.instant;
        self.mesh.read(&registry(nodes), self.now);
        self.judged()
    }

    fn judged(&mut self) -> Vec<(Kind, String)> {
        self.mesh.watch.looked_at = self.now.instant;
        self.mesh.watch.next_look = self.now.instant;
        self.mesh.judge().changes.into_iter().map(|change| (change.kind, change.name.to_string())).collect()
    }

    fn status(&self, name: &str) -> Option<Status> {
        self.mesh.members.get(name).map(|member| member.status)
    }
}

fn registry(nodes: &[Node]) -> Registry {
    let mut registry = Registry::empty();
    registry.nodes = nodes.iter().map(|node| (node.id.clone(), node.clone().into())).collect();
    registry
}

fn node(name: &str, last_seen: u64) -> Node {
    Node {
        id: name.into(),
        name: name.into(),
        host: "10.0.0.1".into(),
        port: 3000,
        status: Status::Online,
        last_seen,
        registered_at: 5,
        ..Node::default()
    }
}

fn offline(name: &str, last_seen: u64) -> Node {
    Node { status: Status::Offline, ..node(name, last_seen) }
}

fn named(name: &str) -> NodeName {
    name.parse().unwrap()
}

#[test]
fn silence_is_counted_on_the_readers_clock_whatever_the_stamp_says() {
    for stamp in [0, 1_000_000, 1_000_000 + 3_600_000] {
        let mut reader = Reader::new();
        assert!(reader.reads(&[node("ct111", stamp)]).is_empty(), "the first reading is no event");
        reader.after(80).reads(&[node("ct111", stamp + 1)]);
        reader.after(90).reads(&[node("ct111", stamp + 1)]);
        assert_eq!(reader.status("ct111"), Some(Status::Online));
        assert_eq!(reader.after(1).judged(), [(Kind::Stale, "ct111".into())]);
        assert_eq!(reader.status("ct111"), Some(Status::Offline));
        assert_eq!(reader.after(9).reads(&[node("ct111", stamp + 2)]), [(Kind::Recovered, "ct111".into())]);
        assert_eq!(reader.status("ct111"), Some(Status::Online));
    }
}

#[test]
fn skew_is_shown_by_the_least_delayed_stamp() {
    let mut reader = Reader::new();
    reader.reads(&[node("ct111", 1)]);
    assert_eq!(reader.mesh.members["ct111"].skew_ms(), None);
    reader.after(10).reads(&[node("ct111", 1_010_000 + 3_600_000 - 900)]);
    reader.after(10).reads(&[node("ct111", 1_020_000 + 3_600_000 - 5)]);
    assert_eq!(reader.mesh.members["ct111"].skew_ms(), Some(3_600_000 - 5));
}

#[test]
fn an_old_copy_brings_nobody_back_to_life() {
    let mut reader = Reader::new();
    reader.reads(&[node("ct111", 100)]);
    assert_eq!(reader.after(1).reads(&[offline("ct111", 200)]), [(Kind::Left, "ct111".into())]);
    for old in [100, 150, 160, 170, 200] {
        reader.after(1).reads(&[node("ct111", old)]);
        assert_eq!(reader.status("ct111"), Some(Status::Offline), "lastSeen {old}");
    }
    // The copy is put right in the file.
    let mut file = registry(&[node("ct111", 170)]);
    assert!(reader.mesh.amend(&mut file, false, reader.now));
    let entry = file.nodes["ct111"].node().unwrap();
    assert_eq!((entry.status, entry.last_seen), (Status::Offline, 200));
    // Removed altogether, then an old copy again; only a newer beat counts.
    reader.after(1).reads(&[]);
    assert_eq!(reader.status("ct111"), None);
    reader.after(1).reads(&[node("ct111", 100)]);
    assert_eq!(reader.status("ct111"), Some(Status::Offline));
    assert_eq!(reader.after(1).reads(&[node("ct111", 201)]), [(Kind::Recovered, "ct111".into())]);
}

#[test]
fn a_clock_that_was_set_back_is_followed() {
    let mut reader = Reader::new();
    reader.reads(&[node("ct111", 900_000)]);
    for beat in 0..5 {
        reader.after(30).reads(&[node("ct111", 10_000 + beat * 30_000)]);
    }
    assert_eq!(reader.status("ct111"), Some(Status::Online));
    assert_eq!(reader.mesh.members["ct111"].node.last_seen, 130_000);
}

#[test]
fn time_without_sight_is_held_against_nobody() {
    let mut reader = Reader::new();
    reader.reads(&[node("ct111", 1)]);
    reader.after(60).judged();
    reader.after(3600);
    assert!(reader.mesh.judge().changes.is_empty(), "blind, so nothing is judged");
    reader.mesh.looked(reader.now, Duration::ZERO);
    assert!(reader.mesh.judge().changes.is_empty());
    assert!(reader.after(29).judged().is_empty());
    assert_eq!(reader.after(2).judged(), [(Kind::Stale, "ct111".into())]);
}

#[test]
fn an_entry_that_an_overwriting_program_lost_is_kept_until_it_is_silent() {
    let mut reader = Reader::new();
    reader.reads(&[node("ct111", 1)]);
    assert!(reader.after(10).reads(&[]).is_empty());
    assert_eq!(reader.status("ct111"), Some(Status::Online));
    assert_eq!(reader.after(91).judged(), [(Kind::Stale, "ct111".into())]);
    assert_eq!(reader.status("ct111"), None);
}

#[test]
fn only_agents_go_stale() {
    let mut reader = Reader::new();
    reader.reads(&[Node { role: Some("datahub".into()), ..node("hub", 1) }]);
    assert!(reader.after(100_000).judged().is_empty());
    assert_eq!(reader.status("hub"), Some(Status::Online));
}

#[test]
fn a_service_that_is_taken_out_of_the_file_is_gone() {
    let mut reader = Reader::new();
    let service = Node { role: Some("service".into()), ..node("ct150", 5) };
    reader.reads(std::slice::from_ref(&service));
    assert_eq!(reader.after(1).reads(&[]), [(Kind::Left, "ct150".into())]);
    assert_eq!(reader.status("ct150"), None);
    assert_eq!(reader.after(1).reads(&[service]), [(Kind::Joined, "ct150".into())]);
    assert_eq!(reader.status("ct150"), Some(Status::Online));
}

#[test]
fn the_own_entry_keeps_its_id_and_what_others_added() {
    let mut reader = Reader::new();
    let mut held = node("CT110", 400);
    held.id = "node-7".into();
    held.extra.insert("rack".into(), json!(3));
    held.metadata = Some(json!({"owner": "rivet"}));
    let mut file = registry(&[held]);
    assert!(reader.mesh.amend(&mut file, false, reader.now));
    let own = file.nodes["node-7"].node().unwrap().clone();
    assert_eq!((own.id.as_str(), own.host.as_str(), own.registered_at), ("node-7", "10.0.0.110", 5));
    assert_eq!((&own.extra["rack"], &own.metadata), (&json!(3), &Some(json!({"owner": "rivet"}))));
    assert_eq!(file.nodes.len(), 1);

    // Nothing to say until the next beat is due.
    reader.after(5);
    assert!(!reader.mesh.amend(&mut file, false, reader.now));
    reader.mesh.beat(reader.now);
    assert!(reader.mesh.amend(&mut file, true, reader.now));
    assert_eq!(file.nodes["node-7"].node().unwrap().last_seen, reader.now.epoch_ms);

    // A clock set back does not stop the stamp.
    reader.now.epoch_ms -= 600_000;
    reader.mesh.beat(reader.now);
    assert!(reader.mesh.amend(&mut file, true, reader.now));
    assert_eq!(file.nodes["node-7"].node().unwrap().last_seen, reader.now.epoch_ms + 600_000 + 1);

    // Nor does one that an earlier process had years ahead.
    let ahead = reader.now.epoch_ms + 10 * 365 * 24 * 3_600_000;
    let mut file = registry(&[Node { registered_at: ahead - 7, ..node("ct110", ahead) }]);
    assert!(reader.mesh.amend(&mut file, true, reader.now));
    let own = file.nodes["ct110"].node().unwrap();
    assert_eq!((own.last_seen, own.registered_at), (ahead + 1, ahead - 7));
}

#[test]
fn an_id_that_another_has_is_not_taken() {
    let mut reader = Reader::new();
    let mut file = registry(&[Node { id: "ct110".into(), ..node("other", 1) }]);
    assert!(reader.mesh.amend(&mut file, true, reader.now));
    assert_eq!(file.nodes["ct110"].node().unwrap().name, "other");
    assert_eq!(file.nodes["ct110-2"].node().unwrap().name, "ct110");
}

#[test]
fn others_are_believed_only_that_a_node_lives() {
    let mut reader = Reader::new();
    let (ct111, ct112) = (named("ct111"), named("ct112"));
    assert_eq!(reader.mesh.hear_of(&ct111, &node("ct111", 10), reader.now), Hearsay::Ask);
    assert_eq!(reader.mesh.hear_of(&ct112, &offline("ct112", 10), reader.now), Hearsay::Settled);
    assert!(reader.mesh.hear_itself(&ct111, node("ct111", 10), reader.now).unwrap());
    reader.judged();
    assert_eq!(reader.mesh.hear_of(&ct111, &node("ct111", 20), reader.now), Hearsay::Settled);
    assert_eq!(reader.mesh.members["ct111"].node.last_seen, 20);
    let moved = Node { host: "10.6.6.6".into(), ..node("ct111", 30) };
    assert_eq!(reader.mesh.hear_of(&ct111, &moved, reader.now), Hearsay::Ask);
    for status in [Status::Offline, Status::Updating, Status::Degraded] {
        let other = Node { status, ..node("ct111", 30) };
        assert_eq!(reader.mesh.hear_of(&ct111, &other, reader.now), Hearsay::Ask);
    }
    assert_eq!(reader.status("ct111"), Some(Status::Online));
    assert_eq!(reader.mesh.members["ct111"].node.host, "10.0.0.1");
}

#[test]
fn a_pause_that_was_meant_is_no_blindness() {
    let mut reader = Reader::new();
    reader.reads(&[node("ct111", 1)]);
    for _ in 0..19 {
        assert!(reader.mesh.judge().changes.is_empty());
        reader.mesh.looked(reader.now, Duration::from_secs(5));
        reader.after(5);
    }
    // A write in the middle of the pause is no look that came late.
    reader.mesh.looked(reader.now, Duration::from_secs(5));
    reader.after(4);
    reader.mesh.looked(reader.now, Duration::ZERO);
    assert_eq!(reader.mesh.judge().changes.len(), 1);
    assert_eq!(reader.status("ct111"), Some(Status::Offline));
}

#[test]
fn beats_of_others_show_that_silence_means_something() {
    let mut reader = Reader::new();
    reader.reads(&[node("ct111", 1), node("ct112", 1)]);
    // This node's own writes fail from now on.
    let beat = |reader: &mut Reader, stamp| {
        assert!(reader.mesh.read(&registry(&[node("ct111", stamp), node("ct112", 1)]), reader.now));
        reader.mesh.others_write(reader.now);
        reader.mesh.judge().changes.iter().map(|change| change.name.to_string()).collect::<Vec<_>>()
    };
    // So do everybody's, for an hour.
    reader.after(3600);
    assert!(beat(&mut reader, 2).is_empty());
    for stamp in 3..6 {
        assert!(beat(reader.after(30), stamp).is_empty());
    }
    assert_eq!(beat(reader.after(30), 6), ["ct112"]);
    assert_eq!(reader.status("ct111"), Some(Status::Online));
}

#[test]
fn who_was_heard_by_network_goes_stale_although_the_file_is_blind() {
    let mut reader = Reader::new();
    reader.reads(&[node("ct111", 1), node("ct112", 1), node("ct113", 1)]);
    let hear = |reader: &mut Reader, name: &str, stamp| {
        reader.mesh.hear_itself(&named(name), node(name, stamp), reader.now).unwrap();
        reader.mesh.judge().changes.iter().map(|change| change.name.to_string()).collect::<Vec<_>>()
    };
    hear(&mut reader, "ct112", 2);
    for stamp in 2..6 {
        assert!(hear(&mut reader, "ct111", stamp).is_empty());
        reader.after(30);
    }
    assert_eq!(hear(&mut reader, "ct111", 6), ["ct112"]);
    // Of ct113 only the file can tell. Seen again, it brings nobody back.
    reader.mesh.looked(reader.now, Duration::ZERO);
    assert!(reader.mesh.judge().changes.is_empty());
    let states = ["ct111", "ct112", "ct113"].map(|name| reader.status(name).unwrap());
    assert_eq!(states, [Status::Online, Status::Offline, Status::Online]);
}

#[test]
fn hearsay_freezes_nobody() {
    let mut reader = Reader::new();
    let ct151 = named("ct151");
    reader.mesh.hear_itself(&ct151, node("ct151", 1000), reader.now).unwrap();
    let stamp = |reader: &Reader| reader.mesh.members["ct151"].node.last_seen;
    for ahead in [END_OF_TIME_MS - 1, 1000 + 45_001] {
        assert_eq!(reader.mesh.hear_of(&ct151, &node("ct151", ahead), reader.now), Hearsay::Ask);
        assert_eq!(stamp(&reader), 1000);
    }
    let now = reader.after(30).now;
    for (stamp, outcome) in [(31_000, Hearsay::Settled), (76_000, Hearsay::Settled), (76_001, Hearsay::Ask)] {
        assert_eq!(reader.mesh.hear_of(&ct151, &node("ct151", stamp), now), outcome);
    }
    // The furthest that is believed delays others' true words by less than the threshold.
    reader.judged();
    assert!(reader.after(80).judged().is_empty());
    assert_eq!(reader.mesh.hear_of(&ct151, &node("ct151", 111_000), reader.now), Hearsay::Settled);
    assert_eq!(stamp(&reader), 111_000);
    // And never the node's own.
    let mut file = registry(&[node("ct151", 111_000)]);
    let moved = Node { host: "10.0.0.151".into(), ..node("ct151", 110_000) };
    assert!(reader.mesh.hear_itself(&ct151, moved, reader.now).unwrap());
    assert_eq!(stamp(&reader), 111_001);
    assert!(reader.mesh.amend(&mut file, false, reader.now));
    assert_eq!(file.nodes["ct151"].node().unwrap().host, "10.0.0.151");
}

#[test]
fn an_id_that_is_anothers_or_reads_so_is_not_taken() {
    let mut reader = Reader::new();
    reader.reads(&[Node { id: "id_7".into(), ..node("ct111", 1) }]);
    for (i, (claimed, taken)) in
        [("ct199", None), ("CT110", None), ("id_7", None), ("", None), ("id_8", Some("id_8"))]
            .into_iter()
            .enumerate()
    {
        let name = format!("ct12{i}");
        reader
            .mesh
            .hear_itself(&named(&name), Node { id: claimed.into(), ..node(&name, 10) }, reader.now)
            .unwrap();
        assert_eq!(reader.mesh.members[name.as_str()].node.id, taken.unwrap_or(&name), "{claimed:?}");
    }
}

#[test]
fn what_a_node_adds_is_kept_up_to_the_limit() {
    let mut reader = Reader::new();
    let ct111 = named("ct111");
    let with = |key: &str, stamp| {
        let mut node = node("ct111", stamp);
        node.extra.insert(key.into(), "x".repeat(40_000).into());
        node
    };
    reader.mesh.hear_itself(&ct111, with("a", 10), reader.now).unwrap();
    let refused = reader.mesh.hear_itself(&ct111, with("b", 20), reader.now).unwrap_err();
    assert_eq!(refused.code(), "node_metadata_too_large");
    assert_eq!(reader.mesh.members["ct111"].node.last_seen, 10);
    // What others put into the file is not a reason to turn the node itself away, and stays.
    reader.mesh.read(
        &registry(&[Node {
            extra: [with("a", 0), with("b", 0)].map(|node| node.extra).into_iter().flatten().collect(),
            ..node("ct111", 30)
        }]),
        reader.now,
    );
    assert!(!reader.mesh.hear_itself(&ct111, node("ct111", 40), reader.now).unwrap());
    let held = &reader.mesh.members["ct111"].node;
    assert_eq!((held.last_seen, held.extra.len()), (40, 2));
}

#[test]
fn what_was_heard_is_written_and_what_lags_waits_for_the_beat() {
    let mut reader = Reader::new();
    let mut file = registry(&[]);
    reader.mesh.hear_itself(&named("ct111"), node("ct111", 10), reader.now).unwrap();
    reader.judged();
    assert!(reader.mesh.amend(&mut file, false, reader.now));
    assert_eq!(file.nodes["ct111"].node().unwrap().last_seen, 10);
    reader.mesh.read(&file, reader.now);
    assert!(!reader.mesh.hear_itself(&named("ct111"), node("ct111", 20), reader.now).unwrap());
    assert!(!reader.mesh.amend(&mut file, false, reader.now));
    let now = reader.after(1).now;
    reader.mesh.beat(now);
    assert!(reader.mesh.amend(&mut file, true, reader.now));
    assert_eq!(file.nodes["ct111"].node().unwrap().last_seen, 20);
}

#[test]
fn a_node_is_never_seen_before_it_is_registered() {
    let mut reader = Reader::new();
    reader.mesh.beat(reader.now);
    // The lock was waited for since.
    reader.now.epoch_ms += 3;
    let mut file = registry(&[]);
    assert!(reader.mesh.amend(&mut file, true, reader.now));
    for registered_at in [0, reader.now.epoch_ms + 50, u64::MAX] {
        let held = Node { registered_at, ..node("ct110", 5) };
        let mut other = registry(&[held]);
        assert!(reader.mesh.amend(&mut other, true, reader.now));
        let own = other.nodes["ct110"].node().unwrap();
        assert!(own.last_seen >= own.registered_at && own.registered_at > 0, "{own:?}");
    }
    let own = file.nodes["ct110"].node().unwrap();
    assert!(own.last_seen >= own.registered_at && own.registered_at > 0, "{own:?}");
    reader
        .mesh
        .hear_itself(&named("ct111"), Node { registered_at: 0, ..node("ct111", 0) }, reader.now)
        .unwrap();
    let heard = &reader.mesh.members["ct111"].node;
    assert!(heard.last_seen >= heard.registered_at && heard.registered_at > 0, "{heard:?}");
}

#[test]
fn an_update_lasts_until_the_operator_ends_it() {
    let mut reader = Reader::new();
    let mut file = registry(&[]);
    reader.mesh.read(&file, reader.now);
    assert!(!reader.mesh.updating());
    reader.mesh.set_updating(true);
    // Down for the update.
    reader.mesh.set_own_status(Status::Offline);
    assert!(reader.mesh.amend(&mut file, true, reader.now));

    let mut again = Reader::new();
    again.mesh.read(&file, again.now);
    assert!(again.mesh.updating());
    again.mesh.set_updating(false);
    again.mesh.set_own_status(Status::Online);
    assert!(again.mesh.amend(&mut file, false, again.now));
    let mut last = Reader::new();
    last.mesh.read(&file, last.now);
    assert!(!last.mesh.updating());

    // An entry by another program; and an operator who was faster than the file.
    let held = Node { status: Status::Updating, ..node("ct110", 5) };
    let mut other = Reader::new();
    other.mesh.read(&registry(std::slice::from_ref(&held)), other.now);
    assert!(other.mesh.updating());
    let mut other = Reader::new();
    other.mesh.set_updating(false);
    other.mesh.read(&registry(&[held]), other.now);
    assert!(!other.mesh.updating());
}

#[test]
fn a_sidecar_that_stops_makes_no_update_that_lasts() {
    let mut reader = Reader::new();
    let mut file = registry(&[]);
    reader.mesh.read(&file, reader.now);
    reader.mesh.set_own_status(Status::Updating);
    assert!(reader.mesh.amend(&mut file, true, reader.now));
    let own = file.named(&named("ct110")).map(|(_, own)| own.status);
    assert_eq!(own, Some(Status::Updating));
    let mut again = Reader::new();
    again.mesh.read(&file, again.now);
    assert!(!again.mesh.updating(), "registryd was restarted at the same time");
}

#[test]
fn judging_looks_at_whom_something_happened_to_and_at_who_is_due() {
    let mut reader = Reader::new();
    reader.reads(&[node("ct111", 1), node("ct112", 1)]);
    reader.after(60).reads(&[node("ct111", 2), node("ct112", 1)]);
    assert!(reader.mesh.touched.is_empty());
    reader.after(29).reads(&[node("ct111", 2), node("ct112", 1)]);
    // Nobody is due, so nobody is looked at: not even one whose status is wrong.
    reader.mesh.members.get_mut("ct111").unwrap().status = Status::Degraded;
    assert!(reader.judged().is_empty());
    reader.mesh.members.get_mut("ct111").unwrap().status = Status::Online;
    assert_eq!(reader.after(2).judged(), [(Kind::Stale, "ct112".into())]);
    assert_eq!((reader.mesh.count(Status::Online), reader.mesh.count(Status::Offline)), (2, 1));
    // The deadline of the first reading passes; the node has moved since, and gets a later one.
    assert!(reader.after(58).judged().is_empty());
    assert_eq!(reader.after(2).judged(), [(Kind::Stale, "ct111".into())]);
    let far = reader.now.instant + Duration::from_secs(1_000_000);
    assert_eq!(reader.mesh.deadlines.pop(far, far), None, "who is stale has no deadline");
}

/// Whatever happened, judging everybody again finds nothing that judging the touched and the due has missed; and a
/// registry of which most is shared with the one before is taken in as one that was read again.
#[test]
fn nobody_is_missed_by_looking_at_few() {
    let names = ["ct111", "ct112", "ct113", "ct114", "ct115"];
    for seed in 1..=60_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut reader, mut anew) = (Reader::new(), Reader::new());
        anew.now = reader.now;
        anew.mesh.watch = reader.mesh.watch;
        let mut stamps = [10_u64; 5];
        let mut last = Registry::empty();
        for step in 0..200 {
            reader.after([0, 1, 7, 40, 100][random(5) as usize]);
            let i = random(5) as usize;
            let (name, now) = (named(names[i]), reader.now);
            let mut both = |act: &dyn Fn(&mut Membership)| {
                act(&mut reader.mesh);
                act(&mut anew.mesh);
            };
            match random(10) {
                0 | 1 => {
                    stamps[i] += random(3);
                    let listed: Vec<Node> = (0..5)
                        .filter_map(|i| match random(14) {
                            0 => Some(offline(names[i], stamps[i])),
                            1 => Some(Node { role: Some("control".into()), ..node(names[i], stamps[i]) }),
                            2 | 3 => None,
                            _ => Some(node(names[i], stamps[i])),
                        })
                        .collect();
                    let content = registry(&listed);
                    last = Registry::parse_after(&content.to_json(), &last).unwrap();
                    reader.mesh.read(&last, now);
                    anew.mesh.read(&content, now);
                }
                2 => both(&|mesh| drop(mesh.hear_itself(&name, node(names[i], now.epoch_ms), now))),
                3 => {
                    let heard = node(names[i], now.epoch_ms - random(90_000));
                    both(&|mesh| {
                        mesh.hear_of(&name, &heard, now);
                    });
                }
                4 => both(&|mesh| mesh.answered(&name, now)),
                5 => both(&|mesh| mesh.unanswered(&name, now)),
                6 => both(&|mesh| mesh.gone(&name)),
                7 => both(&|mesh| mesh.forget(&name)),
                8 => {
                    let pause = Duration::from_secs(random(3));
                    both(&|mesh| mesh.looked(now, pause));
                }
                _ => both(&|mesh| mesh.others_write(now)),
            }
            let told = [reader.mesh.judge(), anew.mesh.judge()].map(|judged| judged.changes);
            assert_eq!(told[0], told[1], "seed {seed}, step {step}");
            for (name, member) in &reader.mesh.members {
                let other = &anew.mesh.members[name];
                assert_eq!(
                    (&member.node, member.status),
                    (&other.node, other.status),
                    "seed {seed}, step {step}"
                );
            }
            let before: Vec<_> =
                reader.mesh.members.iter().map(|(name, m)| (name.clone(), m.status)).collect();
            reader.mesh.touched.extend(before.iter().map(|(name, _)| name.clone()));
            let again = reader.mesh.judge();
            assert!(again.changed.is_empty(), "seed {seed}, step {step}: {again:?} after {before:?}");
            for status in [Status::Online, Status::Degraded, Status::Updating, Status::Offline] {
                let counted = before.iter().filter(|(_, held)| *held == status).count();
                assert_eq!(reader.mesh.count(status), counted, "seed {seed}, step {step}: {status:?}");
            }
        }
    }
}
