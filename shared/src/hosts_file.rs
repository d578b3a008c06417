//! The mesh's block in `/etc/hosts`: its text, and how it is put in and taken out. No files are touched here.

use std::net::IpAddr;

use crate::local_api::NodeView;
use serde::Serialize;

/// The line before the block.
pub const BEGIN: &str = "# mesh begin";
/// The line after the block.
pub const END: &str = "# mesh end";

/// Why a file's block cannot be replaced without losing something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// A marker without its partner.
    #[error("line {0} is {1:?} without its partner; restore or remove that line, then run this again")]
    Unpaired(usize, &'static str),
    /// More than one block.
    #[error("line {0} begins a second block ({BEGIN:?}); remove one of them, then run this again")]
    Second(usize),
}

/// A host name of the mesh and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Host {
    /// `<node>.mesh`.
    pub name: String,
    /// Where it is, at least one.
    pub addresses: Vec<IpAddr>,
}

/// The names of these nodes with their addresses, ordered by name.
///
/// An address in the registry counts more than what the name resolves to: that may itself come from an older
/// block. Nodes without a valid name or any address are left out, so nothing in the registry can put other
/// names into the file.
pub fn hosts(nodes: &[NodeView]) -> Vec<Host> {
    let host = |view: &NodeView| {
        let (name, addresses) = (view.node.node_name()?.mesh_host(), addresses(view));
        (!addresses.is_empty()).then_some(Host { name, addresses })
    };
    let mut hosts: Vec<_> = nodes.iter().filter_map(host).collect();
    hosts.sort();
    hosts.dedup_by(|later, first| later.name == first.name);
    hosts
}

/// The block with these names, both marker lines included.
pub fn block(hosts: &[Host]) -> String {
    let lines = hosts.iter().flat_map(|Host { name, addresses }| {
        addresses.iter().map(move |address| format!("{address}\t{name}\n"))
    });
    format!("{BEGIN}\n{}{END}\n", lines.collect::<String>())
}

fn addresses(view: &NodeView) -> Vec<IpAddr> {
    match view.node.host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => view.addresses.clone(),
    }
}

/// The text with its block replaced by `block`, or with `block` at its end if it has none. Every other byte stays,
/// save that a last line without an end gets one.
///
/// # Errors
/// Markers that do not form exactly one block: nothing is guessed.
pub fn replace(text: &str, block: &str) -> Result<String, BlockError> {
    Ok(match find(text)? {
        Some((start, end)) => [&text[..start], block, &text[end..]].concat(),
        None if text.is_empty() || text.ends_with('\n') => [text, block].concat(),
        None => [text, "\n", block].concat(),
    })
}

/// The text without the block; all of it where the markers are damaged.
///
/// registryd reads `/etc/hosts` this way: the block is a copy of what registryd said earlier, and believing it
/// would keep a moved node at its old address.
pub fn without_block(text: &str) -> String {
    match find(text) {
        Ok(Some((start, end))) => [&text[..start], &text[end..]].concat(),
        _ => text.into(),
    }
}

/// Where the block lies, in bytes, with its final line end.
fn find(text: &str) -> Result<Option<(usize, usize)>, BlockError> {
    let (mut begin, mut found, mut offset) = (None, None, 0);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        match line.trim() {
            BEGIN if begin.is_some() || found.is_some() => return Err(BlockError::Second(i + 1)),
            BEGIN => begin = Some((offset, i + 1)),
            END => match begin.take() {
                Some((start, _)) => found = Some((start, offset + line.len())),
                None => return Err(BlockError::Unpaired(i + 1, END)),
            },
            _ => {}
        }
        offset += line.len();
    }
    match begin {
        Some((_, line)) => Err(BlockError::Unpaired(line, BEGIN)),
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use crate::registry::Node;

    use super::*;

    fn view(name: &str, host: &str, resolved: &[&str]) -> NodeView {
        let node = Node { name: name.into(), host: host.into(), ..Node::default() };
        let addresses = resolved.iter().map(|a| a.parse().unwrap()).collect();
        NodeView { addresses, ..NodeView::of(node) }
    }

    #[test]
    fn the_block_lists_valid_nodes_by_name() {
        let nodes = [
            view("ct111", "ct111.lan", &["10.0.0.111", "fd00::111"]),
            view("CT110", "10.0.0.110", &["10.9.9.9"]),
            view("evil\n8.8.8.8 bank.example", "10.0.0.1", &[]),
            view("ct112", "nowhere.lan", &[]),
        ];
        assert_eq!(
            block(&hosts(&nodes)),
            "# mesh begin\n10.0.0.110\tct110.mesh\n10.0.0.111\tct111.mesh\nfd00::111\tct111.mesh\n# mesh end\n"
        );
    }

    #[test]
    fn everything_outside_the_block_stays_byte_for_byte() {
        let new = "# mesh begin\nnew\n# mesh end\n";
        let file = "127.0.0.1 localhost\r\n\t# x  \n# mesh begin\nold\n# mesh end\n\nlast without end";
        let replaced = replace(file, new).unwrap();
        assert_eq!(
            replaced,
            "127.0.0.1 localhost\r\n\t# x  \n# mesh begin\nnew\n# mesh end\n\nlast without end"
        );
        assert_eq!(replace(&replaced, new).unwrap(), replaced);
        assert_eq!(replace("a", new).unwrap(), format!("a\n{new}"));
        assert_eq!(replace("", new).unwrap(), new);
        assert_eq!(without_block(file), "127.0.0.1 localhost\r\n\t# x  \n\nlast without end");
        assert_eq!(without_block("a\nb"), "a\nb");
    }

    #[test]
    fn damaged_markers_are_left_alone() {
        for (damaged, error) in [
            ("# mesh begin\nx\n", BlockError::Unpaired(1, BEGIN)),
            ("x\n# mesh end\n", BlockError::Unpaired(2, END)),
            ("# mesh begin\n# mesh begin\n# mesh end\n", BlockError::Second(2)),
            ("# mesh begin\n# mesh end\n# mesh begin\n# mesh end\n", BlockError::Second(3)),
        ] {
            assert_eq!(replace(damaged, "x"), Err(error), "{damaged:?}");
            assert_eq!(without_block(damaged), damaged);
        }
    }
}
