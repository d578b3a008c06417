//! Which node a session belongs to that the caller names. Pure.

use mesh_shared::NodeName;

/// The rank of a node for a session; the same on every host and in every version.
pub fn rank(session: &[u8], node: &NodeName) -> u64 {
    // FNV-1a over both, then the finalizer of MurmurHash3, so that names that differ in one letter rank independently.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in session.iter().chain(&[0]).chain(node.as_str().as_bytes()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: usize) -> Vec<NodeName> {
        (0..count).map(|i| format!("ct{}", 110 + i).parse().unwrap()).collect()
    }

    fn home(session: usize, nodes: &[NodeName]) -> &NodeName {
        let session = format!("session-{session}");
        nodes.iter().max_by_key(|node| rank(session.as_bytes(), node)).unwrap()
    }

    #[test]
    fn sessions_spread_evenly() {
        let nodes = nodes(5);
        for node in &nodes {
            let share = (0..10_000).filter(|session| home(*session, &nodes) == node).count();
            assert!((1_800..2_200).contains(&share), "{node}: {share}");
        }
    }

    #[test]
    fn a_change_moves_no_session_that_need_not_move() {
        let five = nodes(5);
        for gone in 0..5 {
            let mut four = five.clone();
            let gone = four.remove(gone);
            for session in 0..2_000 {
                let before = home(session, &five);
                assert!(*before == gone || home(session, &four) == before);
            }
        }
        let six = nodes(6);
        let moved = (0..6_000).filter(|session| home(*session, &six) != home(*session, &five)).count();
        assert!((800..1_200).contains(&moved), "{moved} of 6,000 moved to the sixth node");
        assert!((0..6_000).all(|s| home(s, &six) == home(s, &five) || home(s, &six) == &six[5]));
    }

    #[test]
    fn a_rank_is_the_same_everywhere() {
        assert_eq!(rank(b"a", &"ct110".parse().unwrap()), 0x84c1_63e4_c6cf_344a);
    }
}
