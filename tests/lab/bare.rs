//! The lab itself: bare hosts reach each other, and nothing else.

use mesh_lab::{Lab, story};

#[test]
fn bare_hosts_reach_each_others_services() {
    story("bare::bare_hosts_reach_each_others_services", || {
        let mut lab = Lab::new(2)?;
        lab.vm(2).serve("web", 8080, "hello")?;
        let local = lab.vm(2).curl(&["http://127.0.0.1:8080/status/418"])?;
        assert_eq!((local.status, local.body.as_str()), (418, "hello\n"));
        Ok(())
    });
}
