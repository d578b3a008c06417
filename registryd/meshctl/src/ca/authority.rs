//! What `meshctl ca` says of the certificates that sign.

use std::path::Path;
use std::process::ExitCode;

use mesh_ca::{Ca, INTERMEDIATE_DAYS, NewIntermediate, NewRoot, Retired};
use serde_json::json;

use super::revoke::lists_told;
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
         (not needed again for {} years; take it offline)\n{}next: meshctl ca issue-node <node> <its address>\n",
        dir.display(),
        ca.chain_path().display(),
        ca.signing_key_path().display(),
        root_key.display(),
        INTERMEDIATE_DAYS / 365,
        lists_told(ca)?,
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

pub(super) fn show_root(ca: &Ca, new: &NewRoot, json: bool) -> Result<ExitCode, Failure> {
    let NewRoot { cn, not_after, key, former_cn, former_key } = new;
    if json {
        print_json(&json!({
            "cn": cn, "notAfter": not_after, "chain": ca.chain_path(), "key": key,
            "formerCn": former_cn, "formerKey": former_key,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!(
        "made a new root, CN={cn}, valid until {}\n  its key           {}\n  old key           {}\n  trusted by nodes  {} \
         (the old one too)\n\
         next, in this order:\n\
         \x20 1. on every host: copy ca-chain.pem if you copied it before; mesh-proxy notices\n\
         \x20 2. meshctl ca renew-intermediate (signed by the new root), and every host reads ca-chain.pem again\n\
         \x20 3. meshctl ca renew --all --within 3650, and wait for those that renew themselves\n\
         \x20 4. meshctl ca retire the old intermediate, then \"{former_cn}\"; every host reads ca-chain.pem again\n\
         \x20 5. take the new root's key offline, and destroy the old one\n",
        day(*not_after),
        key.display(),
        former_key.display(),
        ca.chain_path().display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn show_retired(ca: &Ca, retired: &Retired, json: bool) -> Result<ExitCode, Failure> {
    let Retired { cn, serial, key } = retired;
    if json {
        print_json(&json!({ "cn": cn, "serial": serial, "chain": ca.chain_path(), "key": key }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let key = key.as_ref().map_or_else(String::new, |key| {
        format!(
            "its key {} signs nothing any more; once every host has the new chain, it can be destroyed\n",
            key.display()
        )
    });
    print(&format!(
        "took CN={cn}, serial number {serial}, out of {}\n{key}next, on every host: copy ca-chain.pem if you copied it before; \
         mesh-proxy notices\n",
        ca.chain_path().display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}
