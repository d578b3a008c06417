//! What `meshctl ca` says of the certificates that sign.

use std::path::Path;
use std::process::ExitCode;

use mesh_ca::{Ca, INTERMEDIATE_DAYS, NewIntermediate};
use serde_json::json;

use crate::Failure;
use crate::output::{Colour, day, paint, print, print_json};

pub(super) fn show_made(
    ca: &Ca,
    dir: &Path,
    root_dir: &Path,
    above: Option<&Path>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let root_key = root_dir.join("root.key");
    if json {
        let created = above.map(Path::to_owned);
        print_json(&json!({ "chain": ca.chain_path(), "rootKey": root_key, "created": created }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let created = above.map_or_else(String::new, |above| {
        let above = above.display();
        let warning =
            "which was not there: if it should be a mount, mount it and start over with another --root-dir";
        paint(Colour::Yellow, &format!("created {above}, {warning}")) + "\n"
    });
    print(&format!(
        "{created}made a CA in {}\n  trusted by nodes  {}\n  signs from now on {}\n  root key          {} \
         (not needed again for {} years; take it offline)\nnext: meshctl ca issue-node <node> <its address>\n",
        dir.display(),
        ca.chain_path().display(),
        ca.signing_key_path().display(),
        root_key.display(),
        INTERMEDIATE_DAYS / 365,
    ))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn show_intermediate(ca: &Ca, new: &NewIntermediate, json: bool) -> Result<ExitCode, Failure> {
    if json {
        print_json(&json!({
            "cn": new.cn, "notAfter": new.not_after, "chain": ca.chain_path(), "key": ca.signing_key_path(),
            "formerKey": new.former_key,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let former = new.former_key.as_ref().map_or_else(String::new, |key| {
        format!("  old key           {} (only revokes what it has signed)\n", key.display())
    });
    print(&format!(
        "made a new intermediate, CN={}, valid until {}\n  signs from now on {}\n{former}  trusted by nodes  {} \
         (the old one too, until it ends)\n\
         next, in this order:\n\
         \x20 1. on every host: copy ca-chain.pem (and crl.pem) if you copied it before, then systemctl reload \
         mesh-proxy, so that it trusts the new one\n\
         \x20 2. only then issue and renew: those of the old one work until they end; meshctl ca renew --all \
         renews them in time\n\
         \x20 3. take the root's key offline again\n",
        new.cn,
        day(new.not_after),
        ca.signing_key_path().display(),
        ca.chain_path().display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}
