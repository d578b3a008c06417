use super::*;

fn rule(path: Option<&str>, action: Action) -> Rule {
    let path = path.map(|path| path.parse().unwrap());
    Rule { peer: None, caller: None, agent: None, method: None, path, action }
}

fn asked(path: &str) -> Asked<'_> {
    Asked { peer: None, caller: None, agent: None, method: "GET", path, of_mesh: false }
}

/// Every way to write `/admin` that some server understands, and more.
const TRICKS: &[&str] = &[
    "/admin",
    "/admin/",
    "/ADMIN",
    "/aDmIn",
    "/%61dmin",
    "/%41dmin",
    "/%61%64%6d%69%6e",
    "/%2561dmin",
    "/%25%36%31dmin",
    "/%252561dmin",
    "//admin",
    "/%2fadmin",
    "/%2Fadmin",
    "/%5cadmin",
    "/\\admin",
    "/./admin",
    "/%2e/admin",
    "/.%2fadmin",
    "/public/../admin",
    "/public/%2e%2e/admin",
    "/public/%2E./admin",
    "/public/..%2fadmin",
    "/public/..%252fadmin",
    "/public/..%5cadmin",
    "/public/..\\admin",
    "/public/%252e%252e/admin",
    "/public/..;/admin",
    "/public/..;x=1/admin",
    "/public/..%3b/admin",
    "/public/.. /admin",
    "/public/..%20/admin",
    "/public/..%00/admin",
    "/public/..%c0%af/admin",
    "/public/..%c0%afadmin",
    "/public%c0%af../admin",
    "/public/%c0%ae%c0%ae/admin",
    "/public/%e0%80%ae%e0%80%ae/admin",
    "/public/..%ef%bc%8fadmin",
    "/public/%ef%bc%8e%ef%bc%8e/admin",
    "/public/..%e2%88%95admin",
    "/public/..%u2215admin",
    "/public/%u002e%u002e/admin",
    "/public/.../../admin",
    "/public/.;/../admin",
    "/public/;/../../admin",
    "/admin;x",
    "/admin;x=1/",
    "/admin%3bx",
    "/;/admin",
    "/admin%00",
    "/admin%00.html",
    "/admin%0a",
    "/admin%0d%0a",
    "/admin%09",
    "/admin.",
    "/admin%2e",
    "/admin%20",
    "/admin/.",
    "/admin/%2e",
    "/admin//",
    "/admin/x/..",
    "/admin%23x",
    "/admin%3fx",
    "/admin%ff",
    "/admin%",
    "/admin%4",
    "/%zzadmin",
    "/%u0061dmin",
    "/%ef%bd%81dmin",
    "/adm%c4%b1n",
    "/admi%cc%80n",
    "/\u{ff41}dmin",
    "admin",
    "",
    "/admin::$DATA",
];

#[test]
fn no_spelling_gets_past_a_rule_that_refuses_a_path() {
    assert!(TRICKS.len() >= 40);
    let rules = Rules {
        rules: vec![rule(Some("/admin/**"), Action::Deny), rule(None, Action::Allow)],
        mode: Mode::Enforce,
    };
    for path in TRICKS {
        assert_eq!(rules.decide(asked(path)).action, Action::Deny, "{path:?}");
    }
    for path in [
        "/",
        "/public",
        "/administrator",
        "/x/admin",
        "/a%20b",
        "/caf%C3%A9",
        "/100%25",
        "/.well-known/x",
        "*",
    ] {
        assert_eq!(rules.decide(asked(path)).action, Action::Allow, "{path:?}");
    }
}

#[test]
fn no_spelling_of_another_path_passes_as_an_allowed_one() {
    let rules = Rules { rules: vec![rule(Some("/public/**"), Action::Allow)], mode: Mode::Enforce };
    for path in TRICKS.iter().chain(&["/Public/x", "/PUBLIC", "/public;x/y", "/publi", "/public%2fx"]) {
        assert_eq!(rules.decide(asked(path)).action, Action::Deny, "{path:?}");
    }
    for path in ["/public", "/public/", "/public/x/Y", "/publi%63/x"] {
        assert_eq!(rules.decide(asked(path)).action, Action::Allow, "{path:?}");
    }
}

#[test]
fn patterns_cover_what_they_say() {
    let covers = |pattern: &str, path: &str| {
        let pattern: PathPattern = pattern.parse().unwrap();
        assert_eq!(pattern.to_string().parse(), Ok(pattern.clone()));
        pattern.covers(&path::readings(path).unwrap()[0])
    };
    for (pattern, path, expected) in [
        ("/", "/", true),
        ("/", "/a", false),
        ("/**", "/", true),
        ("/**", "/a/b", true),
        ("/a/*", "/a", false),
        ("/a/*", "/a/b", true),
        ("/a/*", "/a/b/c", false),
        ("/a/*/c", "/a/b/c", true),
        ("/a/**", "/a", true),
        ("/a/**", "/ab", false),
        ("/A/b", "/A/b", true),
        ("/A/b", "/a/B", false),
    ] {
        assert_eq!(covers(pattern, path), expected, "{pattern} {path}");
    }
    for bad in
        ["", "a", "/a/", "/a//b", "/../a", "/a/.", "/a%2fb", "/a;b", "/a?b", "/a*", "/a**", "/**/b", "/a\\b"]
    {
        assert!(bad.parse::<PathPattern>().is_err(), "{bad:?}");
    }
}

#[test]
fn the_first_rule_decides_and_what_is_unknown_is_never_allowed_by_it() {
    let (grok, opus): (AgentName, AgentName) = ("grok".parse().unwrap(), "opus".parse().unwrap());
    let shouted: AgentName = "GROK".parse().unwrap();
    let peer: Identity = "opus@ct111".parse().unwrap();
    let of = |agent: &AgentName, action| Rule { agent: Some(agent.clone()), ..rule(None, action) };
    let decide = |rules: Vec<Rule>, agent| {
        let rules = Rules { rules, mode: Mode::Enforce };
        rules.decide(Asked { peer: Some(&peer), agent, ..asked("/") })
    };
    let allowed = vec![of(&grok, Action::Allow)];
    assert_eq!(decide(allowed.clone(), Some(&grok)), Decision { action: Action::Allow, by: By::Rule(0) });
    assert_eq!(decide(allowed.clone(), Some(&opus)).by, By::NoRule);
    assert_eq!(decide(allowed, None).action, Action::Deny);
    let refused = vec![of(&grok, Action::Deny), rule(None, Action::Audit)];
    assert_eq!(decide(refused.clone(), Some(&opus)).action, Action::Audit);
    assert_eq!(decide(refused.clone(), Some(&shouted)).action, Action::Deny);
    assert_eq!(decide(refused, None).action, Action::Deny);
    for (pattern, expected) in
        [("ct111", true), ("*@*", true), ("node:*", false), ("ct110", false), ("device:*", false)]
    {
        assert_eq!(pattern.parse::<PeerPattern>().unwrap().covers(&peer), expected, "{pattern}");
    }
}

#[test]
fn methods_and_the_paths_of_the_mesh() {
    let get = Rule { method: Some("GET".into()), ..rule(None, Action::Deny) };
    let rules = Rules { rules: vec![get, rule(None, Action::Allow)], mode: Mode::Enforce };
    for (method, action) in
        [("GET", Action::Deny), ("HEAD", Action::Deny), ("get", Action::Deny), ("POST", Action::Allow)]
    {
        assert_eq!(rules.decide(Asked { method, ..asked("/") }).action, action, "{method}");
    }
    let of_mesh = Asked { of_mesh: true, ..asked("/api/mesh/ping") };
    for path in ["/api/mesh/ping", "/API/mesh", "/api/agents/", "/api/mesh;x/join"] {
        assert!(is_of_mesh(path), "{path}");
    }
    assert!(!is_of_mesh("/api/message"));
    let nobody = Rules { rules: vec![rule(None, Action::Deny)], mode: Mode::Enforce };
    assert_eq!(nobody.decide(of_mesh), Decision { action: Action::Allow, by: By::NoRule });
    let all = Rules { rules: vec![rule(Some("/**"), Action::Deny)], mode: Mode::Enforce };
    assert_eq!(all.decide(of_mesh).action, Action::Deny);
}
